-- Load for wrk: every request asks something else, every answer is read and compared, the summary is one line of JSON.
-- Arguments after `--`: dialect (ollama, ask, openai), "stream" or "whole", tokens, a tag for this run, a key or "".

local dialect, streaming, tokens, tag, key
local asked = 0
wrong, sample = 0, ""  -- global: the summary asks every thread for them
local threads = {}
local expected = ""
local finds = { ollama = '"content":"([^"]*)"', openai = '"content":"([^"]*)"', ask = '"token":"([^"]*)"' }
local ends = { ollama = '"done":true', openai = "[DONE]", ask = '"done":true' }

function setup(thread)
  table.insert(threads, thread)
  thread:set("number", #threads)
end

function init(arguments)
  dialect, streaming, tokens = arguments[1], arguments[2] == "stream", tonumber(arguments[3])
  tag, key = arguments[4], arguments[5] or ""
  local words = {}
  for index = 0, tokens - 1 do words[#words + 1] = "w" .. index end
  expected = table.concat(words, " ")
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  if key ~= "" then wrk.headers["Authorization"] = "Bearer " .. key end
end

function request()
  asked = asked + 1
  local question = string.format("Question %s-%d-%d: why does a small fleet of old phones answer faster than one?",
    tag, number, asked)
  local stream = streaming and "true" or "false"
  local body
  if dialect == "ask" then
    body = string.format('{"prompt":"%s","temperature":0,"num_predict":%d}', question, tokens)
  elseif dialect == "openai" then
    body = string.format('{"model":"smollm2:135m","messages":[{"role":"user","content":"%s"}],"temperature":0,'
      .. '"max_tokens":%d,"stream":%s}', question, tokens, stream)
  else
    body = string.format('{"model":"smollm2:135m","messages":[{"role":"user","content":"%s"}],"stream":%s,'
      .. '"options":{"temperature":0,"num_predict":%d}}', question, stream, tokens)
  end
  return wrk.format(nil, nil, nil, body)
end

local function whole(body)
  if not streaming then return body:find(expected, 1, true) ~= nil end
  if not body:find(ends[dialect], 1, true) then return false end
  local parts = {}
  for part in body:gmatch(finds[dialect]) do parts[#parts + 1] = part end
  return table.concat(parts) == expected
end

function response(status, headers, body)
  if status ~= 200 or not whole(body) then
    wrong = wrong + 1
    if sample == "" then sample = status .. " " .. body:sub(1, 160):gsub('[%c"\\]', " ") end
  end
end

function done(summary, latency)
  local bad, shown = 0, ""
  for _, thread in ipairs(threads) do
    bad = bad + thread:get("wrong")
    if shown == "" then shown = thread:get("sample") end
  end
  local errors = summary.errors
  io.write(string.format('RESULT {"requests":%d,"wrong":%d,"sample":"%s","seconds":%.6f,"p50_ms":%.4f,"p99_ms":%.4f,'
    .. '"connect":%d,"read":%d,"write":%d,"timeout":%d}\n', summary.requests, bad, shown, summary.duration / 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, errors.connect, errors.read, errors.write,
    errors.timeout))
end
