"""Networks: a switch with members, addresses, names, published ports; and the netlink that makes them."""
