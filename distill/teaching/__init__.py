"""What teaches the student: which teachers label which heads, and the soft labels that they give."""
