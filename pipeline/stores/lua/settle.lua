-- after: fence, run, incarnation, opened
-- Acknowledge settled entries, trim what lies before the oldest that is not, and delete those of them that lie behind it: an entry
-- that stays, for a window that does not close, keeps nothing but itself. KEYS: lease, stream, books.
-- ARGV: token, group, id before which everything is settled, ids...
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3])
for first = 4, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  redis.call('XACK', KEYS[2], ARGV[2], unpack(ARGV, first, last))
  redis.call('XDEL', KEYS[2], unpack(ARGV, first, last))
end
