"""Thin adapters from the training loops people have to the `Steerer`; import the one you need."""
