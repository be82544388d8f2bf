"""What backends share that decode on our own machines: prompts, masks, growing answers and the
thread in which they grow. No engine is imported here; `json_schema` needs core's extra
`constrained`."""
