"""Reads text files and data sets, checks them, and writes the splits that training reads."""
