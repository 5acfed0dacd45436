#!/usr/bin/env bash
# Two network namespaces, cadre-a and cadre-b, joined by a link of a given rate, for benches. As root:
#   bench/shaped_link.sh up 1gbit
#   build/release/bench_collectives --transport ucx --ranks 2 --netns cadre-a,cadre-b
#   bench/shaped_link.sh down
set -euo pipefail

case ${1:-} in
  up)
    rate=${2:?a rate, such as 1gbit}
    for end in a b; do
      ip netns add "cadre-$end"
      ip -n "cadre-$end" link set lo up
    done
    ip link add veth-a netns cadre-a type veth peer name veth-b netns cadre-b
    number=1
    for end in a b; do
      ip -n "cadre-$end" addr add "10.77.0.$number/24" dev "veth-$end"
      ip -n "cadre-$end" link set "veth-$end" up
      tc -n "cadre-$end" qdisc add dev "veth-$end" root tbf rate "$rate" burst 256kb latency 50ms
      number=2
    done
    # Devices that are not up yet are no devices to UCX.
    for end in a b; do
      until ip -n "cadre-$end" -br link show "veth-$end" | grep -q ' UP '; do sleep 0.05; done
    done
    ;;
  down)
    for end in a b; do ip netns del "cadre-$end"; done
    ;;
  *)
    echo "usage: $0 up RATE | down" >&2
    exit 2
    ;;
esac
