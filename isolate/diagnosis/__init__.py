"""From an errno to a cause and a remedy: facts about the host, and the findings that belong to no noun."""
