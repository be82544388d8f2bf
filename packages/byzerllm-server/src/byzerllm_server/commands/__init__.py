"""Commands of `byzerllm`, one module each."""
