"""Measure structured output: whether answers keep to their form, and what that costs."""
