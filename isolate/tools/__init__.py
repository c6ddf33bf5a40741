"""What a person touches: the command line, the doctor, the pytest plugin."""
