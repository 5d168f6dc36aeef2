"""What a person looks at: html, tables, galleries and charts of runs and sweeps."""
