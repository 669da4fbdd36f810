"""Ask and look: what metrics, queries, replay, reports and the command line cost."""
