"""StitchVM, and the nouns that value estimators and alignment algorithms plug into."""
