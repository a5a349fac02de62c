"""Pictures of the metrics of runs: in the terminal, as PNG, as SVG. Leans on nothing that trains."""
