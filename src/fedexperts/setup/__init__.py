"""From a scenario to plan, samples, model and devices."""
