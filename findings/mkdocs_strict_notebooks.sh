#!/usr/bin/env bash
# mkdocs 1.6.1 with mkdocs-jupyter 0.26.3
#
# Behaviour: mkdocs build --strict succeeds if an executed notebook raises an error, and puts the
# traceback on the page, because mkdocs-jupyter's allow_errors is on by default and logs no warning. It
# also succeeds with links to missing headings, which it logs as information. With --quiet it always
# succeeds, because it does not count warnings.
# One would have guessed: --strict fails if the documentation is broken; --quiet changes only the
# output.
# Output seen:
#   a notebook that raises: exit status 0, traceback on the page
#   the same with allow_errors: false: exit status 1
#   a link to a missing heading: exit status 0
#   a link to a missing page: exit status 1, with --quiet 0
source "$(dirname "$0")/venv.sh"
install 'mkdocs==1.6.1' 'mkdocs-jupyter==0.26.3'
mkdir "$folder/docs"
cd "$folder"
run "$folder/docs/notebook.ipynb" <<'PYTHON'
import sys

import nbformat

notebook = nbformat.v4.new_notebook()
notebook.cells = [nbformat.v4.new_code_cell("raise ValueError('no figure')")]
nbformat.write(notebook, sys.argv[1])
PYTHON

# status NOTEBOOK-OPTIONS LINK [OPTION]: the exit status of building a page that has the link
status() {
    printf '# Home\n\n[link](%s)\n' "$2" > "$folder/docs/index.md"
    printf 'site_name: a\nplugins: [{mkdocs-jupyter: {%s}}]\n' "$1" > "$folder/mkdocs.yml"
    "$folder/venv/bin/mkdocs" build --strict ${3-} --config-file "$folder/mkdocs.yml" \
        > "$folder/log" 2>&1 && echo 0 || echo $?
}

raising=$(status 'execute: true' 'notebook.ipynb')
shown=$(grep -q 'no figure' "$folder/site/notebook/index.html" && echo traceback || echo nothing)
refused=$(status 'execute: true, allow_errors: false' 'notebook.ipynb')
heading=$(status 'execute: false' '#missing')
page=$(status 'execute: false' 'missing.md')
quiet=$(status 'execute: false' 'missing.md' --quiet)
echo "a notebook that raises: exit status $raising, $shown on the page"
echo "the same with allow_errors: false: exit status $refused"
echo "a link to a missing heading: exit status $heading"
echo "a link to a missing page: exit status $page, with --quiet $quiet"
[ "$raising $shown $refused $heading $page $quiet" = "0 traceback 1 0 1 0" ]
