"""Measurements: ``python -m bench prefill | host | build | accept``, run from the checkout. See NOTES.md."""
