"""mmunlearn: make vision-language models forget people, and show what they forgot and what they kept."""
