"""Where weights come from: safetensors and GGUF files, read straight into the tensors that the model computes with."""
