"""Networks: links between network namespaces, made by rtnetlink."""
