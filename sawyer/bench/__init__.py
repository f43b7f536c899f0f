"""What `sawyer bench` measures, and how: models made for it, rounds, layer calls, the yardstick. Starts no processes
and prints nothing: that is sawyer.cli.bench_run and sawyer.cli.bench."""
