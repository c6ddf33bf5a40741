"""The tools for people: the command line, the doctor, the pytest plugin."""
