"""Tables, figures and the HTML report, all derived from run directories."""
