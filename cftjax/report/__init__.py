"""What a person reads of a run: tables, pictures, a page, a card."""
