# SPDX-License-Identifier: Apache-2.0
# Completion of cleat(1) for bash.

_cleat() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} verb='' names='' manager=--system i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --user) [[ -n $verb ]] || manager=--user ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=${COMP_WORDS[i]}; else names+=" ${COMP_WORDS[i]}"; fi ;;
        esac
    done
    if [[ -z $verb ]]; then
        mapfile -t COMPREPLY < <(compgen -W "
            check plan schema reload-agent start stop restart reload pause resume kill wait run status
            inspect top stats info logs events exec attach pull images prune checkpoint restore --user
            --system --version --help
        " -- "$word")
        return
    fi

    local flags='' valued=''
    case $verb in
        check | plan | reload-agent | top | stats | info | images)
            flags="--json --user --system"
            ;;
        schema | run)
            flags="--user --system"
            ;;
        start | restart | reload | pause | resume | wait | pull)
            flags="-a --all --user --system"
            ;;
        stop)
            flags="-a --all --user --system"
            valued="-t --time"
            ;;
        kill)
            flags="-a --all --user --system"
            valued="-s --signal"
            ;;
        status)
            flags="--json --user --system"
            valued="-n --lines"
            ;;
        inspect)
            flags="--spec --user --system"
            ;;
        logs)
            flags="-f --follow -t --timestamps --agent --json --user --system"
            valued="-n --lines -p --priority --since --until"
            ;;
        events)
            flags="--no-follow --json --user --system"
            valued="--since --until -n --lines"
            ;;
        exec)
            flags="-i --interactive -t --tty -d --detach"
            valued="-u --user -w --workdir -e --env --cap-add"
            ;;
        attach)
            flags="--no-stdin --sig-proxy --user --system"
            valued="--detach-keys"
            ;;
        prune)
            flags="--dry-run --json --user --system"
            ;;
        checkpoint)
            flags="-R --leave-running --tcp-established -k --keep --user --system"
            valued="-e --export"
            ;;
        restore)
            flags="--tcp-established -k --keep --user --system"
            valued="-i --import"
            ;;
        *) return ;;
    esac

    if [[ " $valued " == *" $before "* ]]; then
        case $verb:$before in
            kill:*) mapfile -t COMPREPLY < <(compgen -A signal -- "$word") ;;
            checkpoint:* | restore:*) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
            logs:-p | logs:--priority)
                mapfile -t COMPREPLY < <(compgen -W "emerg alert crit err warning notice info debug" -- "$word")
                ;;
        esac
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags $valued -h --help" -- "$word")
    else
        case $verb in
            check | run)
                mapfile -t COMPREPLY < <(compgen -f -X '!*.toml' -- "$word"; compgen -d -S / -- "$word")
                ;;
            inspect | top | logs | exec | attach | checkpoint | restore)
                [[ -n $names ]] || mapfile -t COMPREPLY < <(compgen -W "$(_cleat_names)" -- "$word")
                ;;
            start | stop | restart | reload | pause | resume | kill | wait | status | stats | events | pull)
                mapfile -t COMPREPLY < <(compgen -W "$(_cleat_names)" -- "$word")
                ;;
        esac
    fi
}

# The containers that the agent knows; reads $manager of the caller.
_cleat_names() {
    timeout 2 cleat "$manager" __names 2>/dev/null
}

complete -F _cleat cleat
