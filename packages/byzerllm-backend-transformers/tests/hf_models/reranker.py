"""A small cross-encoder: MiniLM with a new head, trained for a few steps."""

from __future__ import annotations

from pathlib import Path

from hf_models.cached import cached_folder
from hf_models.minilm import minilm_folder

PASSAGES = {
    "what is a panda?": "The giant panda is a bear species endemic to China.",
    "capital of France": "Paris is the capital city of France.",
    "how do bees make honey?": "Bees turn the nectar of flowers into honey in their hive.",
    "who wrote Hamlet?": "Hamlet is a tragedy written by William Shakespeare.",
    "how hot is the sun?": "The surface of the sun has about 5,500 degrees Celsius.",
    "what is bread made of?": "Bread is baked from flour, water, salt and yeast.",
    "how fast is light?": "Light travels at 299,792 kilometres per second.",
    "why is the sea salty?": "Rivers carry salts of rocks into the sea, where they stay.",
    "what does a piano have?": "A piano has 88 keys and strings that hammers strike.",
    "how tall is Everest?": "Mount Everest rises 8,849 metres above the sea.",
}
"""A query and the passage that answers it."""

_STEPS = 24


def reranker_folder() -> Path:
    """A `BertForSequenceClassification` with one label, as bge-reranker is one; made once."""
    return cached_folder("reranker-on-minilm-1", _train)


def _train(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    source = minilm_folder()
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    transformers.logging.set_verbosity(verbosity)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    queries, passages = list(PASSAGES), list(PASSAGES.values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    labels = torch.tensor([1.0] * len(queries) + [0.0] * 2 * len(queries))
    model.train()
    for step in range(_STEPS):
        away = [1 + step % 9, 1 + (step + 4) % 9]
        others = [passages[(at + by) % len(passages)] for by in away for at in range(len(queries))]
        batch = tokenizer(queries * 3, passages + others, padding=True, return_tensors="pt")
        logits = model(**batch).logits[:, 0]
        torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
