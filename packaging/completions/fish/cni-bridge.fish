# fish completion for cni-bridge(8)

complete -c cni-bridge -f
complete -c cni-bridge -n __fish_use_subcommand -a list -d 'List the networks of this host'
complete -c cni-bridge -n __fish_use_subcommand -a show -d 'Show a network, or all'
complete -c cni-bridge -n __fish_use_subcommand -a repair -d 'Give the attachments their rules back'
complete -c cni-bridge -n __fish_use_subcommand -a prune -d 'Remove bridges and rules that nobody uses'
complete -c cni-bridge -s h -l help -d 'Print the usage'
complete -c cni-bridge -s V -l version -d 'Print the version'
complete -c cni-bridge -n '__fish_seen_subcommand_from list show' -l json -d 'Print JSON'
complete -c cni-bridge -n '__fish_seen_subcommand_from show' -l dot -d 'Print a graph for Graphviz'
complete -c cni-bridge -n '__fish_seen_subcommand_from show repair' -a '(cni-bridge list 2>/dev/null | awk "NR > 1 { print \$1 }")' -d Network
