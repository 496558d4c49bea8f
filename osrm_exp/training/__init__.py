"""The fine-tuning of one adapter, by Lightning."""
