"""SGLang asks vLLM for rotary embeddings where it has no kernel of its own."""
