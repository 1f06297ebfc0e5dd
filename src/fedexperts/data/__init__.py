"""Where samples come from, how they are dealt to devices, and how a model is judged on them."""
