# SPDX-License-Identifier: Apache-2.0
"""Our compiled networks beside their peers, each in a process of its own, all taking turns in one run.

`compare` is the engine; a contender is a file of `contenders/`; `worker` is what runs in the processes; `per_layer`
looks inside our own network.
"""
