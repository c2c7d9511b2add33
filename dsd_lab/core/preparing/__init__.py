"""Writing data sets: in a form that is read at random without decoding, and as sources read known ones that are fetched."""
