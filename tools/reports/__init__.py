"""Reports: HTML pages, figures and further tables from the files that trainings and evaluations leave."""
