"""EC2 instance types: hardware, price and power, each group with its source, date and confidence.

    table.py         the records, and how they are read from instances.toml
    instances.toml   the facts, dated; edited by hand

No network, no AWS account: a price here is a dated snapshot, and `with_price` puts the reader's own in its place.
"""

from neuron_port.instances.table import (
    Evidence,
    Instance,
    all_instances,
    compile_hosts,
    compile_memory_gib,
    gpu_instances,
    instance,
    instances_of,
    table_date,
    table_region,
    with_price,
    with_prices,
)

__all__ = [
    "Evidence",
    "Instance",
    "all_instances",
    "compile_hosts",
    "compile_memory_gib",
    "gpu_instances",
    "instance",
    "instances_of",
    "table_date",
    "table_region",
    "with_price",
    "with_prices",
]
