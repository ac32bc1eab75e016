"""Send the events of a run or a study to an experiment tracker."""
