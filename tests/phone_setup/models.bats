#!/usr/bin/env bats
# How a model comes to the phone: downloaded, or copied there by hand.

load termux

gguf() {
    mkdir -p "$(dirname "$1")"
    printf 'GGUF and more' >"$1"
}

# ollama_store FOLDER NAME TAG: a store with one model of two blobs.
ollama_store() {
    local manifest="$1/manifests/registry.ollama.ai/library/$2/$3" text digest
    mkdir -p "$1/blobs" "$(dirname "$manifest")"
    : >"$manifest"
    for text in "weights of $2:$3" "settings"; do
        digest=$(printf '%s' "$text" | sha256sum | cut -d ' ' -f 1)
        printf '%s' "$text" >"$1/blobs/sha256-$digest"
        printf '{"digest":"sha256:%s"}' "$digest" >>"$manifest"
    done
}

@test "a download that breaks off is gone on with" {
    echo 2 >"$FAKE/pull_breaks"
    set_up qwen2.5:0.5b
    went_well
    says "the download broke off (try 2 of 5)"
    [ "$(tr '\n' ' ' <"$FAKE/pulls.log")" = "qwen2.5:0.5b from 0 qwen2.5:0.5b from 1000 qwen2.5:0.5b from 2000 " ]
    [ ! -e "$HOME/mobile-llm/pulling" ]
}

@test "a download that never ends fails, and the next run goes on without throwing the half away" {
    echo 5 >"$FAKE/pull_breaks"
    set_up qwen2.5:0.5b
    fails_with "run the same command again"
    "$HOME/mobile-llm/stop_ollama.sh"
    set_up qwen2.5:0.5b
    went_well
    [ "$(tail -n 1 "$FAKE/pulls.log")" = "qwen2.5:0.5b from 5000" ]
    grep -q 'noprune=1' "$FAKE/serves"
}

@test "a model that the library has not" {
    echo "pull model manifest: file does not exist" >"$FAKE/pull_error"
    set_up nothing:1b
    fails_with "no model called nothing:1b"
}

@test "a phone that runs full during the download" {
    echo "write: no space left on device" >"$FAKE/pull_error"
    set_up qwen2.5:0.5b
    fails_with "storage ran full"
}

@test "a model that does not answer" {
    echo 1 >"$FAKE/mute"
    set_up qwen2.5:0.5b
    fails_with "model requires more system memory"
}

@test "a GGUF file by its path" {
    gguf "$HOME/My Model.Q4_0.gguf"
    set_up --model-file "$HOME/My Model.Q4_0.gguf"
    went_well
    called "ollama create my-model.q4_0 -f"
    [[ $(answers tags) == *my-model.q4_0:latest* ]]
    [ ! -e "$HOME/mobile-llm/Modelfile" ]
}

@test "a file with quotes, semicolons and letters of other scripts in its name; not with a line break" {
    odd="$HOME/a \"b'; \$(touch x) é/日本; 5.gguf"
    gguf "$odd"
    set_up --model-file "$odd"
    went_well
    called "ollama create 5 -f"
    [[ $(answers tags) == *'"5:latest"'* ]]
    [ ! -e "$HOME/x" ]
    gguf "$HOME/-rf.gguf"
    cd "$HOME" || return 1
    set_up --model-file -rf.gguf --dry-run
    went_well
    says "Model: rf, from $HOME/-rf.gguf"
    gguf "$HOME/models/two"$'\n'"lines.gguf"
    set_up two --model-file "$HOME/models/two"$'\n'"lines.gguf"
    fails_with "has a line break in it"
    rm -r "$HOME/mobile-llm"
    set_up --dry-run --port "$(free_port)"
    fails_with "has a line break in it"
    set_up ../../etc
    fails_with "is not the name of a model"
}

@test "a GGUF file in models/ of the shared storage, by its name or as the only one" {
    gguf "$EXTERNAL_STORAGE/models/tiny.gguf"
    set_up --dry-run
    went_well
    says "Model: tiny, from $EXTERNAL_STORAGE/models/tiny.gguf"
    gguf "$EXTERNAL_STORAGE/models/other.gguf"
    set_up --dry-run
    fails_with "Several models lie in models/ (other.gguf tiny.gguf)"
    set_up other --dry-run
    went_well
    says "other.gguf"
    set_up qwen2.5:0.5b --dry-run
    went_well
    says "bring the model qwen2.5:0.5b (pull)"
}

@test "a file that is no GGUF file, and a folder that is no model" {
    printf 'PK and more' >"$HOME/half.gguf"
    set_up --model-file "$HOME/half.gguf"
    fails_with "is not a GGUF file"
    mkdir "$HOME/empty"
    set_up --model-file "$HOME/empty"
    fails_with "is neither a GGUF file"
}

@test "room for the copy of a side-loaded file" {
    gguf "$HOME/big.gguf"
    truncate -s 2G "$HOME/big.gguf"
    echo 2500000 >"$FAKE/df"
    set_up --model-file "$HOME/big.gguf"
    fails_with "MB free on this phone"
}

@test "a file too large for the phone's RAM" {
    gguf "$HOME/huge.gguf"
    truncate -s 6G "$HOME/huge.gguf"
    set_up --model-file "$HOME/huge.gguf"
    fails_with "huge wants about"
}

@test "a folder of safetensors, under the name that was asked for" {
    mkdir "$HOME/hf"
    touch "$HOME/hf/config.json" "$HOME/hf/model.safetensors"
    set_up pocket --model-file hf
    went_well
    called "ollama create pocket -f"
}

@test "a folder of safetensors that lacks a file, and one part of a GGUF file" {
    mkdir "$HOME/hf"
    touch "$HOME/hf/config.json"
    echo weights >"$HOME/hf/model-00001-of-00002.safetensors"
    printf '{"weight_map": {"a": "model-00001-of-00002.safetensors",\n"b": "model-00002-of-00002.safetensors"}}' \
        >"$HOME/hf/model.safetensors.index.json"
    set_up --model-file "$HOME/hf"
    fails_with "lacks model-00002-of-00002.safetensors"
    cp "$HOME/hf/model-00001-of-00002.safetensors" "$HOME/hf/model-00002-of-00002.safetensors"
    set_up --model-file "$HOME/hf" --dry-run
    went_well
    gguf "$HOME/big-00001-of-00003.gguf"
    set_up --model-file "$HOME/big-00001-of-00003.gguf"
    fails_with "is one part of several"
    [ ! -e "$HOME/mobile-llm" ]
}

@test "a file that Ollama does not take" {
    gguf "$HOME/odd.gguf"
    touch "$FAKE/create_fails"
    set_up --model-file "$HOME/odd.gguf"
    fails_with "could not make a model of"
}

@test "a copied Ollama store, only what the model needs" {
    ollama_store "$HOME/models" small 1b
    ollama_store "$HOME/models" other 2b
    set_up
    fails_with "several models (other:2b small:1b)"
    set_up small:1b
    went_well
    [[ $(answers tags) == *small:1b* ]]
    [ "$(find "$HOME/.ollama/models/blobs" -type f | wc -l)" = 2 ]
    [ ! -e "$HOME/.ollama/models/manifests/registry.ollama.ai/library/other" ]
    [ ! -e "$FAKE/pulls.log" ]
}

@test "a copied Ollama store with a damaged or missing blob" {
    ollama_store "$HOME/store" small 1b
    blob=$(find "$HOME/store/blobs" -type f | head -n 1)
    echo worse >"$blob"
    set_up --model-file "$HOME/store"
    fails_with "could not be copied"
    [ ! -e "$HOME/.ollama/models/manifests/registry.ollama.ai/library/small/1b" ]
    rm "$blob"
    set_up --model-file "$HOME/store"
    fails_with "lacks sha256-"
    set_up absent --model-file "$HOME/store"
    fails_with "does not hold absent"
}
