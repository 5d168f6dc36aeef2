"""Which metric sees which fault: real pictures made worse step by step, judged against other real ones."""
