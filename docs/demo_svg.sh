#!/bin/sh
# Draws docs/demo.svg from what `make demo` prints:   examples/tinytalk/demo.sh | docs/demo_svg.sh >docs/demo.svg
# The listing of the store is left out, it is too wide for a picture; every other line is as it was printed.
LC_ALL=C.UTF-8 sed '/^1\. /,/^2\. /{/^2\. /!d}; s/ *$//' | awk '
function escape(s) { gsub(/&/, "\\&amp;", s); gsub(/</, "\\&lt;", s); gsub(/>/, "\\&gt;", s); return s }
function colour(s) {
    if (s ~ /^[0-9]\. |^All answers/) return "#ffffff\" font-weight=\"bold"
    if (s ~ /= transformers and PEFT/) return "#7ee787"
    if (s ~ /WRONG/) return "#ff7b72"
    if (s ~ /^ *\$|^ *build\/lora/) return "#79c0ff"
    if (s ~ /MODEL|──/) return "#8b949e"
    return "#c9d1d9"
}
NR == 1 && !length { next }
{ line[++n] = $0 }
END {
    step = 18; left = 20; top = 52
    height = top + (n + 2) * step
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"%d\" viewBox=\"0 0 860 %d\" role=\"img\"", height, height
    print " aria-label=\"make demo: nine models answer the same words from one batch\">"
    printf "<rect width=\"860\" height=\"%d\" rx=\"10\" fill=\"#0d1117\"/>\n", height
    split("#ff5f57 #febc2e #28c840", dot, " ")
    for (i = 1; i <= 3; i++) printf "<circle cx=\"%d\" cy=\"20\" r=\"6\" fill=\"%s\"/>\n", 4 + 20 * i, dot[i]
    print "<g font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,monospace\" font-size=\"13\" xml:space=\"preserve\" style=\"white-space:pre\">"
    printf "<text x=\"%d\" y=\"%d\" fill=\"#79c0ff\">$ make demo</text>\n", left, top
    for (i = 1; i <= n; i++)
        if (length(line[i]))
            printf "<text x=\"%d\" y=\"%d\" fill=\"%s\">%s</text>\n", left, top + (i + 1) * step, colour(line[i]), escape(line[i])
    print "</g>\n</svg>"
}'
