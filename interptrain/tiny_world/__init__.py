"""The embedded world: a small pretrained Llama, its SAE, its corpus and its scorer."""
