# fish completion for alias-dns(8)

function __alias_dns_column --description 'A column of the list of names'
    alias-dns list 2>/dev/null | awk -v column=$argv[1] 'NR > 1 { gsub(",", "\n", $column); print $column }' | sort -u
end

complete -c alias-dns -f
complete -c alias-dns -n __fish_use_subcommand -a list -d 'List the names of containers'
complete -c alias-dns -n __fish_use_subcommand -a query -d 'Tell what a name is answered with, and why'
complete -c alias-dns -n __fish_use_subcommand -a hosts -d 'Print the names of a network as a hosts file'
complete -c alias-dns -n __fish_use_subcommand -a status -d 'Tell the state of the server'
complete -c alias-dns -n __fish_use_subcommand -a serve -d 'Be the server'
complete -c alias-dns -s h -l help -d 'Print the usage'
complete -c alias-dns -s V -l version -d 'Print the version'
complete -c alias-dns -n '__fish_seen_subcommand_from list query hosts status' -l json -d 'Print JSON'
complete -c alias-dns -n '__fish_seen_subcommand_from query' -l as -x -a '(__alias_dns_column 4)' -d 'Ask as this container'
complete -c alias-dns -n '__fish_seen_subcommand_from query' -l type -x -a 'A AAAA CNAME MX NS PTR SOA SRV TXT' -d 'Ask for this type'
complete -c alias-dns -n '__fish_seen_subcommand_from list hosts' -a '(__alias_dns_column 1)' -d Network
complete -c alias-dns -n '__fish_seen_subcommand_from query' -a '(__alias_dns_column 5)' -d Name
