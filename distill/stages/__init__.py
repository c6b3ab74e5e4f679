"""One file a stage; they know each other only through `artifacts`."""
