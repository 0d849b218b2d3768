"""Which of several runs needs less to reach a loss, over seeds, and what can be concluded from that."""
