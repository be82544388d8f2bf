"""Import path of earlier releases; use `byzerllm.client.code_utils`."""

from byzerllm.client.code_utils import UNKNOWN, extract_code, infer_lang

__all__ = ["UNKNOWN", "extract_code", "infer_lang"]
