"""One module per vendor; each is named by an entry point of the group `byzerllm`."""
