"""Services, as BentoML serves them."""
