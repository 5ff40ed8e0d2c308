"""Sentence pairs into English out of the message catalogues of translated software."""
