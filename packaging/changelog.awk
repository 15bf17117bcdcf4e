# Turns CHANGELOG.md into the changelog of a Debian package. Set with -v:
# package, version, maintainer, and the date of the build. What is not released
# yet is the entry of the version being built; what is, has a version and a date
# of its own.

function entry(number, text, when) {
	return sprintf("%s (%s-1) unstable; urgency=medium\n%s\n -- %s  %s\n\n", package, number, text, maintainer, when)
}

function finish() {
	if (changes != "") {
		entries = entries entry(number, changes "\n", when)
		built = built || number == version
	}
	changes = ""
}

# add appends a word to the changes, on a line of its own where it would not fit.
function add(word) {
	if (column + 1 + length(word) > 79) {
		changes = changes "\n   "
		column = 3
	}
	changes = changes " " word
	column += 1 + length(word)
}

/^## / {
	finish()
	number = $2
	gsub(/[][]/, "", number)
	when = date
	if (number == "Unreleased")
		number = version
	else
		("date -u -R -d " $4) | getline when
	next
}
# The items of the lists alone: what stands between them introduces them.
/^- / {
	changes = changes "\n "
	column = 1
	$1 = "*"
}
/^\*|^  / {
	for (i = 1; i <= NF; i++)
		add($i)
}

END {
	finish()
	printf "%s%s", built ? "" : entry(version, "\n  * Nothing that a user would notice.\n", date), entries
}
