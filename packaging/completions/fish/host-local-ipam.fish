# fish completion for host-local-ipam(8)

complete -c host-local-ipam -f
complete -c host-local-ipam -n __fish_use_subcommand -a list -d 'List the leases of a network, or of all'
complete -c host-local-ipam -n __fish_use_subcommand -a release -d 'Give an address back'
complete -c host-local-ipam -n __fish_use_subcommand -s h -l help -d 'Print the usage'
complete -c host-local-ipam -n __fish_use_subcommand -s V -l version -d 'Print the version'
complete -c host-local-ipam -n '__fish_seen_subcommand_from list' -l json -d 'Print JSON'
complete -c host-local-ipam -n '__fish_seen_subcommand_from list release' -l data-dir -r -a '(__fish_complete_directories)' -d 'Where the leases are'
complete -c host-local-ipam -n '__fish_seen_subcommand_from list release' -a '(command ls /var/lib/cni/networks 2>/dev/null)' -d Network
complete -c host-local-ipam -n '__fish_seen_subcommand_from release' -a '(host-local-ipam list 2>/dev/null | string match -r --groups-only "^\S+\s+([0-9a-f.:]+)\s")' -d Address
