"""What is compiled here when first needed: decoder layers on a CPU, calibrated's drafting."""
