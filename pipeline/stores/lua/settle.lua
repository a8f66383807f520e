-- after: fence, run, incarnation, opened
-- Acknowledge settled entries and trim what lies before the oldest that is not. KEYS: lease, stream, books.
-- ARGV: token, group, id before which everything is settled, ids...
for first = 4, #ARGV, 1000 do
  redis.call('XACK', KEYS[2], ARGV[2], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3])
