"""Methods: what each needs beside its protocol, from preparing devices to judging and saving the model."""
