"""Teachers, which score the student's tokens: models in this process, servers, caches, and one teacher per task."""
